#!/usr/bin/env bash
# A C++ compiler for mmcv's operators, for CXX: c++ with a precompiled header that all of the 77 sources include.
#
# Each source includes all of torch's headers, and parsing them takes several times as long as compiling the rest. The
# first call precompiles mmcv's pytorch_cpp_helper.hpp, which includes them, with the flags of the sources; gcc then uses
# the result for all sources. If this fails for any reason, the script is plain c++.
set -u
folder=${PRECOMPILED:?names a folder for the precompiled header}
header=pytorch_cpp_helper.hpp

flags=() source=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        -c | -MMD) ;;
        -MF | -o) ((i++)) ;;
        *.cpp) source=${!i} ;;
        *) flags+=("${!i}") ;;
    esac
done
if [[ -z $source ]]; then # linking, or a query of the version
    exec c++ "$@"
fi

mkdir -p "$folder"
(
    flock 9
    if [[ ! -e $folder/tried ]]; then
        touch "$folder/tried"
        original=$(printf '%s\n' "${flags[@]}" | sed -n 's/^-I//p' | while read -r include; do
            find "$include" -maxdepth 1 -name $header
        done | head -n 1)
        if [[ -n $original ]]; then
            cp "$original" "$folder" # gcc uses one precompiled header only; the include guard then skips the original
            c++ "${flags[@]}" -x c++-header "$folder/$header" -o "$folder/unfinished" 2>"$folder/log" &&
                mv "$folder/unfinished" "$folder/$header.gch"
        fi
    fi
) 9>"$folder/lock"

if [[ -e $folder/$header.gch ]]; then
    exec c++ -I"$folder" -include $header "$@"
fi
exec c++ "$@"
