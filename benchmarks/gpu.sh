#!/usr/bin/env bash
# benchmarks/gpu.sh [--dry-run] [--again] [--folder DIR] [PART...]; -h explains.
set -euo pipefail

root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
results=$root/benchmarks/results
[[ ! -x $root/.venv/bin/python ]] || PATH=$root/.venv/bin:$PATH
all=(correct backends speed training scaling ddp)
declare -A limits=([correct]=120 [backends]=40 [speed]=90 [training]=80 [scaling]=100 [ddp]=50)
# seconds, 480 in all

usage() {
    cat <<EOF
Everything that wants a GPU, in at most eight minutes:

    benchmarks/gpu.sh                 # what is not done yet
    benchmarks/gpu.sh training ddp    # these parts alone
    benchmarks/gpu.sh --again         # all parts anew
    benchmarks/gpu.sh --dry-run       # show the commands, with or without a GPU

Parts, in this order, and the seconds after which each is stopped:
$(for part in "${all[@]}"; do printf '    %-12s %4d\n' "$part" "${limits[$part]}"; done)

A part that succeeded is not run again. What was done, with the output of each part, stands in
the folder of --folder (default: benchmarks/results/gpu), with a report.md that says which attention
backend "auto" chooses. The CSVs are in benchmarks/results.
EOF
}

die() {
    printf 'gpu.sh: %s\n' "$1" >&2
    exit 2
}

# The command of a part, one word per line.
command_of() {
    local bench=(python "$root/benchmarks/$1.py" --device cuda --results "$results")
    case $1 in
    correct) printf '%s\n' python -m pytest -q "$root/tests/test_attention.py" ;;
    backends) printf '%s\n' "${bench[@]}" --report "$folder/report.md" ;;
    speed) printf '%s\n' "${bench[@]}" --figures "$folder" --batch-sizes 1 512 4096 --repeats 5 ;;
    training)
        printf '%s\n' "${bench[@]}" --batch-sizes 512 4096 --repeats 5 \
            --networks ParT --precisions bf16
        ;;
    scaling) printf '%s\n' "${bench[@]}" --figures "$folder" --amp ;;
    ddp) printf '%s\n' env DDP_NGPUS=1 "$root/train_QuarkGluon.sh" ParT kin --demo ;;
    esac
}

folder=$results/gpu dry=no again=no parts=()
while (($#)); do
    case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry=yes ;;
    --again) again=yes ;;
    --folder)
        folder=${2:?$(die "--folder needs a folder.")}
        shift
        ;;
    -*) die "there is no option $1; -h lists them." ;;
    *)
        [[ -n ${limits[$1]:-} ]] || die "there is no part $1; choose from ${all[*]}."
        parts+=("$1")
        ;;
    esac
    shift
done
((${#parts[@]})) || parts=("${all[@]}")

if [[ $dry == no ]]; then
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
        die "PyTorch sees no GPU here; --dry-run shows what would be run."
    mkdir -p "$folder"
fi

failed=()
for part in "${parts[@]}"; do
    mapfile -t words < <(command_of "$part")
    if [[ $dry == yes ]]; then
        printf '%s: %s\n' "$part" "${words[*]@Q}"
        continue
    fi
    if [[ -e $folder/$part.done && $again == no ]]; then
        printf '%s: done before\n' "$part"
        continue
    fi
    rm -f "$folder/$part.done"
    printf '%s: at most %d s\n' "$part" "${limits[$part]}"
    if timeout --kill-after=10 "${limits[$part]}" "${words[@]}" >"$folder/$part.log" 2>&1; then
        printf '%s\n' "$SECONDS" >"$folder/$part.done"
    else
        printf '%s: failed, see %s\n' "$part" "$folder/$part.log" >&2
        failed+=("$part")
    fi
done
if ((${#failed[@]})); then
    printf 'gpu.sh: %s failed; the next call begins there.\n' "${failed[*]}" >&2
    exit 1
fi
