# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are read and set in the files beside this one
#
# What weaver reads, and how: files of a data set or of the user, their checks, the loader's options.

# Files that are smaller together are read at once and kept: a small sample would otherwise come in
# crumbs. 200 MB of JetClass files are about 2 GB of padded inputs.
small=200000000

# The arrays `data` and `loading`.
choose_data() {
    local variable=DATADIR_$dataset bytes=0 fewest=0 each=1 absent=()
    datadir=${!variable:-$root/datasets/$dataset}
    data=() loading=()
    check_path "$datadir"
    if [[ $datadir$root == *[:*?[]* ]]; then
        problem "weaver cannot read from a folder with one of : * ? [ in its path, as in $datadir."
    fi
    check_user_files -i --data-train
    check_user_files -l --data-val
    check_user_files -t --data-test
    if [[ $predict == no ]] && ! given -i --data-train; then
        if ! given -l --data-val; then
            if [[ -z $validation_split ]] || compgen -G "$datadir/${data_val[0]}" >/dev/null; then
                add_files val
                check_share "${data_val[0]}" 1
            else
                loading+=(--train-val-split "$validation_split")
                each=2 # weaver cannot cut the validation jets out of a single file
            fi
        fi
        add_files train
        check_share "${data_train[0]}" $each
        if ((fewest > 0 && fewest / per_node < workers)); then
            workers=$((fewest / per_node))
        fi
        if ((bytes > 0 && bytes < small)); then
            fetch_step=1 in_memory=yes
        fi
    fi
    if ! given -t --data-test; then
        add_files test
    fi
    report_absent
    loading+=(--num-workers "$workers")
    if [[ $predict == no ]]; then
        loading+=(--fetch-step "$fetch_step")
        if [[ $in_memory == yes ]]; then
            loading+=(--in-memory)
        fi
    fi
}

# Adds the files of a split, `data_SPLIT` being patterns `[GROUP:]PATTERN`, to the array `data`.
# `fewest` becomes the number of files of its smallest group, `bytes` grows by the size of all, and
# patterns without a file are added to `absent`.
add_files() {
    local -n patterns=data_$1
    local pattern path size files paths=()
    fewest=
    for pattern in "${patterns[@]}"; do
        path=$datadir/${pattern#*:}
        mapfile -t files < <(compgen -G "$path")
        if ((${#files[@]} == 0)); then
            absent+=("$path")
        else
            check_files "${files[@]}"
            while read -r size; do
                bytes=$((bytes + size))
            done < <(stat -Lc %s -- "${files[@]}")
        fi
        if [[ -z $fewest ]] || ((${#files[@]} < fewest)); then
            fewest=${#files[@]}
        fi
        if [[ $pattern == *:* ]]; then
            path=${pattern%%:*}:$path
        fi
        paths+=("$path")
    done
    data+=("--data-$1" "${paths[@]}")
}

# weaver hands whole files to the processes of a node: each of them needs `$2` of the pattern `$1`.
check_share() {
    local least=$((per_node * $2)) hint="add a validation file ${data_val[0]}"
    if ((per_node > 1)); then
        hint="use --gpus instead of DDP_NGPUS"
    fi
    if ((fewest > 0 && fewest < least)); then
        problem "This run needs at least $least files ${1#*:}, and $datadir has $fewest: $hint."
    fi
}

# The files that the user gave with an option, `$1` in short and `$2` in full.
check_user_files() {
    local pattern files
    given "$1" "$2" || return 0
    ((${#values[@]})) || die "$2 needs a file; -h explains."
    for pattern in "${values[@]}"; do
        [[ ${pattern#*:} != *:* ]] ||
            die "$2 takes [GROUP:]FILE, and weaver cannot read a path with a colon: $pattern."
        mapfile -t files < <(compgen -G "${pattern#*:}")
        if ((${#files[@]} == 0)); then
            problem "$2: there is no file ${pattern#*:}."
        else
            check_files "${files[@]}"
        fi
    done
}

# Whether weaver can read the files, by their names and first bytes.
check_files() {
    local path magic
    for path; do
        magic=
        case $path in
            *.root) magic=root ;;
            *.parquet) magic=PAR1 ;;
            *.h5) magic=$'\x89HDF' ;;
            *.awkd) ;;
            *)
                problem "weaver cannot read $path: it reads .root, .parquet, .h5 and .awkd files."
                return
                ;;
        esac
        if [[ ! -f $path || ! -r $path ]]; then
            problem "$path is not a file that can be read."
        elif [[ ! -s $path ]]; then
            problem "$path is empty."
        elif ! starts_with "$path" "$magic"; then
            problem "$path is not a ${path##*.} file: it starts with other bytes."
        else
            continue
        fi
        return # one note of a dry run is enough
    done
}

# Whether the bytes of the file `$1` start with `$2`.
starts_with() {
    local LC_ALL=C start=
    IFS= read -r -d '' -n ${#2} start <"$1" || true
    [[ $start == "$2" ]]
}

report_absent() {
    local how="get it with ./get_datasets.py $dataset"
    ((${#absent[@]})) || return 0
    if [[ -d $root/data/samples/$dataset ]]; then
        how+=", or generate it with ./get_datasets.py $dataset --simulate 100000,"
        how+=" or take the small sample with ./get_datasets.py $dataset --sample"
    fi
    problem "The $dataset data set is missing, there is no ${absent[0]}: $how."
}
