# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are read and set in the files beside this one
#
# What weaver reads, and how: files of a data set or of the user, their checks, the loader's options.

# Files that are smaller together are read at once and kept: a small sample would otherwise come in
# crumbs. 200 MB of JetClass files are about 2 GB of padded inputs.
small=200000000

# The arrays `data` and `loading`; the patterns [GROUP:]PATH of the files of each split go to
# `data_train`, `data_val` and `data_test`, the share of the training files that weaver trains on, where
# it validates with the rest, to `training_share`.
choose_data() {
    local variable=DATADIR_$dataset bytes=0 count=0 fewest=0 splits=no absent=()
    datadir=
    if [[ -n $dataset ]]; then
        datadir=${!variable:-$root/datasets/$dataset}
        check_path "$datadir"
    fi
    data=() loading=() training_share=1
    declare -gA own_files=()
    if [[ $datadir$root == *[:*?[]* ]]; then
        problem "weaver cannot read from a folder with one of : * ? [ in its path, as in $datadir."
    fi
    find_patterns -i train
    find_patterns -l val
    find_patterns -t test
    if [[ $predict == no ]]; then
        if has_validation; then
            add_files val
            check_share "${data_val[0]}"
        else
            splits=yes training_share=${validation_split:-0.8}
            loading+=(--train-val-split "$training_share")
            if given --train-val-split; then
                training_share=$value
            fi
        fi
        add_files train
        check_share "${data_train[0]}"
        if ((fewest > 0 && fewest / per_node < workers)); then
            workers=$((fewest / per_node))
        fi
        if ((bytes > 0 && bytes < small)); then
            fetch_step=1 in_memory=yes
        fi
    fi
    if predicts || ((${#data_test[@]})); then
        add_files test
    fi
    report_absent
    loading+=(--num-workers "$workers")
    if [[ $predict == no ]]; then
        loading+=(--fetch-step "$fetch_step")
        if [[ $in_memory == yes ]]; then
            loading+=(--in-memory)
            if validates_all; then
                loading+=(--no-in-memory-val) # from memory, weaver goes round and round
            fi
        fi
    fi
}

# The patterns of a split, `$2`: those of the user's option, `$1` in short, which are checked and noted
# in `own_files`, or those of the data set in its folder.
find_patterns() {
    local -n patterns=data_$2
    local i group files
    if ! given "$1" "--data-$2"; then
        for i in "${!patterns[@]}"; do
            group=
            [[ ${patterns[i]} != *:* ]] || group=${patterns[i]%%:*}:
            patterns[i]=$group$datadir/${patterns[i]#*:}
        done
        return
    fi
    ((${#values[@]})) || die "--data-$2 needs a file; -h explains."
    own_files[$2]=yes patterns=("${values[@]}")
    for i in "${!patterns[@]}"; do
        [[ ${patterns[i]#*:} != *:* ]] ||
            die "--data-$2 takes [GROUP:]FILE, and weaver cannot read a path with a colon:" \
                "${patterns[i]}."
        mapfile -t files < <(compgen -G "${patterns[i]#*:}")
        if ((${#files[@]} == 0)); then
            problem "--data-$2: there is no file ${patterns[i]#*:}."
        fi
    done
}

# Whether there are files to validate with. Those of a data set do not go with training files of the
# user; without any, weaver takes a part of the training files.
has_validation() {
    if [[ -n ${own_files[val]:-} ]]; then
        return 0
    elif ((${#data_val[@]} == 0)) || [[ -n ${own_files[train]:-} ]]; then
        return 1
    fi
    [[ -z $validation_split ]] || compgen -G "${data_val[0]#*:}" >/dev/null
}

# Whether the user wants to validate on all jets, each of them once, by a negative number.
validates_all() {
    given --samples-per-epoch-val --steps-per-epoch-val && [[ $value == -* ]]
}

# Looks at the files of a split, and adds the option to the array `data` unless the user gave it.
# `count` becomes the number of files, `fewest` that of the pattern with the fewest, `bytes` grows by
# the size of all, and patterns of the data set without a file are added to `absent`.
add_files() {
    local -n listed=data_$1
    local pattern size files
    ((${#listed[@]})) || die "$script needs --data-$1 FILES; -h explains."
    fewest='' count=0
    for pattern in "${listed[@]}"; do
        mapfile -t files < <(compgen -G "${pattern#*:}")
        count=$((count + ${#files[@]}))
        if ((${#files[@]})); then
            check_files "${files[@]}"
            while read -r size; do
                bytes=$((bytes + size))
            done < <(stat -Lc %s -- "${files[@]}")
        elif [[ -z ${own_files[$1]:-} ]]; then
            absent+=("${pattern#*:}")
        fi
        if [[ -z $fewest ]] || ((${#files[@]} < fewest)); then
            fewest=${#files[@]}
        fi
    done
    if [[ -z ${own_files[$1]:-} ]]; then
        data+=("--data-$1" "${listed[@]}")
    fi
}

# weaver hands whole files to the processes of a node: each of them needs one of every pattern, of
# which `$1` is the first. Out of a single file of another kind than ROOT it cannot cut the
# validation jets.
check_share() {
    local least=$per_node found=$fewest hint="add files"
    if [[ $splits == yes && ${1##*.} != root ]] && ((count < 2 * per_node)); then
        least=$((2 * per_node)) found=$count
        hint="give files for validation with --data-val"
        if [[ -n $dataset && -z ${own_files[train]:-} ]]; then
            hint="add a validation file ${data_val[0]##*/}"
        fi
    fi
    if ((per_node > 1)); then
        hint="use --gpus instead of DDP_NGPUS"
    fi
    if ((found > 0 && found < least)); then
        problem "This run needs at least $least files ${1#*:}, and there is $found: $hint."
    fi
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

# Only the files of a data set can be absent here.
report_absent() {
    local how="get it with ./get_datasets.py $dataset"
    ((${#absent[@]})) || return 0
    if [[ -d $root/data/samples/$dataset ]]; then
        how+=", or generate it with ./get_datasets.py $dataset --simulate 100000,"
        how+=" or take the small sample with ./get_datasets.py $dataset --sample"
    fi
    problem "The $dataset data set is missing, there is no ${absent[0]}: $how."
}
