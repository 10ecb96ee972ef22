# shellcheck shell=bash
# shellcheck disable=SC2154  # the settings are set in the files that this one sources
#
# What train.sh and the train_*.sh share. Each of them sets what belongs to its data set (dataset,
# config, default_feature, data_train, epochs, ...) and calls `train "$@"`; train.sh, where the user
# gives the data, leaves these empty. Nothing here changes the folder,
# so that relative paths in the options mean what they mean in the user's shell.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=env.sh
source "$root/env.sh"
# shellcheck source=scripts/models.sh
source "$root/scripts/models.sh"
# shellcheck source=scripts/options.sh
source "$root/scripts/options.sh"
# shellcheck source=scripts/data.sh
source "$root/scripts/data.sh"
# shellcheck source=scripts/output.sh
source "$root/scripts/output.sh"
# shellcheck source=scripts/command.sh
source "$root/scripts/command.sh"
# shellcheck source=scripts/jobs.sh
source "$root/scripts/jobs.sh"

# Checks everything, and builds the commands. Nothing is created before all of it has passed.
prepare() {
    script=./train${dataset:+_$dataset}.sh arguments="MODEL and FEATURES"
    [[ -n $dataset ]] || arguments="NETWORK and CONFIG"
    find_programs
    find_folders
    find_networks
    find_features
    parse_arguments "$@"
    choose_network
    choose_data_config
    choose_length
    check_arguments
    check_weaver_options
    check_programs
    choose_processes
    choose_data
    choose_weights
    choose_output
    check_gpus
    check_run
    if [[ $dry_run == no ]]; then
        make_output
    fi
    build_command
}

# How the processes use memory and threads, where the user has not said otherwise.
tune_processes() {
    # Idle threads that spin make a step on the CPU several times slower as soon as another program
    # wants the cores.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
    if [[ -z $gpus ]]; then
        # glibc gives large blocks back to the system at once, and each step pays for new pages: a
        # third of the time of PN on the CPU.
        export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
        export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
    fi
}

train() {
    local line profile_line='' status=0
    prepare "$@"
    printf -v line '%q ' "${command[@]}"
    if [[ -n $profile && $node == 0 ]]; then
        build_profile_command
        printf -v profile_line '%q ' "${profile_command[@]}"
    fi
    if [[ $dry_run == yes ]]; then
        echo "${line% }"
        [[ -z $profile_line ]] || echo "${profile_line% }"
        return
    fi
    echo "+ ${line% }" >&2
    tune_processes
    run_job "${command[@]}" || status=$?
    if ((status)); then
        rmdir "$output" 2>/dev/null || true # weaver did not even start
        return $status
    fi
    if ((node == 0)); then
        evaluate_predictions
    fi
    if [[ -n $profile_line ]]; then
        echo "+ ${profile_line% }" >&2
        run_job "${profile_command[@]}"
    fi
}
