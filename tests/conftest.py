import os

import torch

# Tests run beside each other's subprocesses on small machines: threads that wait for each other cost more than they give
os.environ.setdefault("OMP_NUM_THREADS", "2")
torch.manual_seed(0)
