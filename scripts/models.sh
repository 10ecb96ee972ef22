# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # the settings are read and set in the files beside this one
#
# The training defaults of the networks, and where networks, data configs and pretrained weights lie.
#
# A new architecture is a file networks/MODEL.py and a row here; without a row it is trained with
# the defaults of choose_network.
#   family      ParT: mixed precision on GPUs, the weight decay of the data set
#   pretrained  fine-tuning starts from models/PRETRAINED_{kin,kinpid}.pt
models=(
    # model         family  lr    batch  pretrained
    "ParT           ParT    1e-3  512    -"
    "LinformerParT  ParT    1e-3  512    -"
    "ReformerParT   ParT    1e-3  512    -"
    "MambaParT      ParT    1e-3  512    -"
    "PN             PN      1e-2  512    -"
    "PFN            PFN     2e-2  4096   -"
    "PCNN           PCNN    2e-2  4096   -"
    "ParT-FineTune  ParT    1e-4  512    ParT"
    "PN-FineTune    PN      1e-3  512    ParticleNet"
)

# The folders with networks/ and data/: those of $JETZOO_PATH, then the checkout.
find_folders() {
    local folder
    folders=()
    while IFS= read -r -d : folder; do
        if [[ -n $folder ]]; then
            folders+=("${folder/#\~\//$HOME/}")
        fi
    done <<<"${JETZOO_PATH:-}:"
    folders+=("$root")
}

# The path of each network, in `networks`, and the models of this data set, in `model_names`: the
# rows of the table, then the others by name.
find_networks() {
    local LC_ALL=C folder path name row pretrained
    declare -gA networks=()
    model_names=()
    for folder in "${folders[@]}"; do
        for path in "$folder"/networks/*.py; do
            name=${path##*/} name=${name%.py}
            if [[ -f $path && $name != _* && -z ${networks[$name]:-} ]]; then
                networks[$name]=$path
            fi
        done
    done
    for row in "${models[@]}"; do
        read -r name _ _ _ pretrained <<<"$row"
        if [[ $pretrained != - && $fine_tuning == no ]]; then
            unset "networks[$name]"
        elif [[ -n ${networks[$name]:-} ]]; then
            model_names+=("$name")
        fi
    done
    while IFS= read -r name; do
        if [[ -n $name ]] && ! is_one_of "$name" "${model_names[@]}"; then
            model_names+=("$name")
        fi
    done < <(printf '%s\n' "${!networks[@]}" | sort)
}

# The path of each data config of this data set by the name of its feature set, or of all data sets
# by DATASET/NAME, in `data_configs`; the names in `features`, the default one first.
find_features() {
    local LC_ALL=C folder path name start=data/${dataset:+$dataset/${config}_}
    declare -gA data_configs=()
    features=(${default_feature:+"$default_feature"})
    for folder in "${folders[@]}"; do
        for path in "$folder/$start"*.yaml "$folder/$start"*/*.yaml; do
            name=${path#"$folder/$start"} name=${name%.yaml}
            # weaver writes files NAME.<checksum>.auto.yaml beside a data config.
            if [[ -f $path && $name != *.* && -z ${data_configs[$name]:-} ]]; then
                data_configs[$name]=$path
            fi
        done
    done
    while IFS= read -r name; do
        if [[ -n $name && $name != "$default_feature" ]]; then
            features+=("$name")
        fi
    done < <(printf '%s\n' "${!data_configs[@]}" | sort)
}

# Sets `network`, the path of the network file, `model`, its name, and its training defaults. `hosted`
# is yes for a file from outside of networks/, which may know nothing of jetzoo.
choose_network() {
    local row zoo path=''
    if [[ $model == */* || $model == *.py ]]; then
        path=$model model=${model##*/} model=${model%.py}
        check_chosen "network file" "$path" .py
    fi
    zoo=$root/networks/$model.py
    if [[ $path -ef $zoo ]]; then # as by its name, if it is a model of this data set
        [[ -z ${networks[$model]:-} ]] || networks[$model]=$zoo
        path=
    fi
    family=- lr=1e-3 batch=512 pretrained=- network=$path hosted=yes
    if [[ -z $path ]]; then
        is_one_of "$model" "${model_names[@]}" ||
            die "There is no model '$model'${dataset:+ for $dataset}; the models are" \
                "${model_names[*]}, or the path of a network file."
        network=${networks[$model]}
        for row in "${models[@]}"; do
            if [[ ${row%% *} == "$model" ]]; then
                read -r _ family lr batch pretrained <<<"$row"
            fi
        done
    fi
    if [[ $network -ef $zoo ]]; then
        hosted=no
    fi
}

# A demo is short, whatever is trained.
choose_length() {
    if [[ $demo == yes ]]; then
        epochs=$demo_epochs samples=$demo_samples samples_val=$demo_samples_val batch=$demo_batch
    fi
}

# Sets `data_config`, the path, and `feature`, its name.
choose_data_config() {
    local kind="feature set"
    if [[ -z $dataset ]]; then
        kind="data config"
        [[ -n $feature ]] || die "$script needs NETWORK and CONFIG; -h explains."
    fi
    data_config=${data_configs[$feature]:-}
    if [[ -z $data_config && ($feature == */* || $feature == *.yaml) ]]; then
        data_config=$feature feature=${feature##*/} feature=${feature%.yaml}
        check_chosen "data config" "$data_config" .yaml
    elif [[ -z $data_config ]]; then
        die "There is no $kind '$feature'${dataset:+ for $dataset}; the ${kind}s are" \
            "${features[*]}, or the path of a data config."
    fi
}

# A file that the user chose in place of a name, `$1`, with the path `$2` and the ending `$3`. Its name
# becomes that of a folder.
check_chosen() {
    local name=${2##*/}
    check_path "$2"
    [[ $2 == *"$3" && -f $2 && -r $2 ]] || die "There is no $1 ${2@Q} that can be read."
    [[ -n ${name%"$3"} && $name != *[][:*?{}]* ]] ||
        die "The $1 ${2@Q} gives its name to a folder: it cannot hold one of : * ? [ ] { }."
}

# The weights that the training starts from, as options of weaver, in the array `weights`.
choose_weights() {
    local kind=kinpid
    weights=()
    if [[ -n $load ]]; then
        check_weights "--load" "$load"
    fi
    if given --load-model-weights; then
        check_weights "--load-model-weights" "${value%%:*}"
        return
    fi
    if [[ $predict == yes || $resume != no ]]; then
        return
    fi
    if [[ -n $load ]]; then
        weights=(--load-model-weights "$load")
    elif [[ $pretrained != - && -z $dataset ]]; then
        problem "$model starts from the weights of another training: give them with --load FILE.pt."
    elif [[ $pretrained != - ]]; then
        if [[ $feature == kin ]]; then
            kind=kin
        fi
        weights=(--load-model-weights "$root/models/${pretrained}_$kind.pt")
        [[ -f ${weights[1]} ]] ||
            problem "$model starts from JetClass weights, which are expected in ${weights[1]};" \
                "jetzoo models --fetch ${pretrained}_$kind gets the published ones, for --load."
    fi
}

# Whether `$2`, the value of the option `$1`, is a file that PyTorch wrote.
check_weights() {
    if [[ $2 == *:* ]]; then
        die "$1 $2 has a colon in its path, which weaver cannot take."
    elif [[ $2 != *.pt || ! -f $2 ]]; then
        problem "$1 $2 is not an existing .pt file."
    elif [[ ! -r $2 ]]; then
        problem "$1 $2 cannot be read: permission denied."
    elif ! starts_with "$2" $'PK\x03\x04' && ! starts_with "$2" $'\x80'; then
        problem "$1 $2 is not a file of weights that PyTorch wrote."
    elif starts_with "$2" PK && ! is_whole "$2"; then
        problem "$1 $2 is cut: its end is missing."
    fi
}
