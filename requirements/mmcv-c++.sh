#!/usr/bin/env bash
# A C++ compiler for mmcv's operators, for CXX: c++ with a header precompiled that every one of the 77 sources includes.
#
# Each source parses all of torch's headers, which takes several times as long as compiling it. The first compilation
# precompiles mmcv's own pytorch_cpp_helper.hpp, which includes them, with the very flags of the sources; gcc takes the
# result for the others. Where that is not possible, for whatever reason, this is plain c++.
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
if [[ -z $source ]]; then # it links, or is asked for its version
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
            cp "$original" "$folder" # gcc takes one precompiled header only, and skips this one by its guard
            c++ "${flags[@]}" -x c++-header "$folder/$header" -o "$folder/unfinished" 2>"$folder/log" &&
                mv "$folder/unfinished" "$folder/$header.gch"
        fi
    fi
) 9>"$folder/lock"

if [[ -e $folder/$header.gch ]]; then
    exec c++ -I"$folder" -include $header "$@"
fi
exec c++ "$@"
