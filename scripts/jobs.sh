# shellcheck shell=bash
# shellcheck disable=SC2154  # the settings are set in the files beside this one
#
# Programs that end with all of their processes when the script is interrupted.

# Runs a program in a session of its own, so that a signal can be sent to it and everything that it
# started (loaders, the processes of torchrun).
run_job() {
    local status=0
    job='' job_name=${1##*/}
    trap 'end_job "Ctrl-C" 130' INT
    trap 'end_job "SIGTERM" 143' TERM
    trap 'end_job "the end of the terminal" 129' HUP
    setsid "$@" <&0 & # without <&0, the shell gives a background program no input
    job=$!
    wait "$job" || status=$?
    trap - INT TERM HUP
    return $status
}

# Ends the running program, then the script, with the exit code `$2`. SIGTERM in any case: at SIGINT
# each process of weaver would print a traceback.
end_job() {
    local hint='' tries
    # The shell's own remark about the job that was terminated is one sentence too many.
    exec 3>&2 2>/dev/null
    job=${job:-$!}
    trap 'kill -KILL -- "-$job"' INT TERM HUP # the second signal does not wait
    kill -TERM -- "-$job" || kill -TERM "$job" || true
    for ((tries = 0; tries < 400; tries++)); do # torchrun gives its processes 30 seconds
        kill -0 -- "-$job" || break
        sleep 0.1
    done
    kill -KILL -- "-$job" || true
    wait "$job" || true
    if [[ $predict == no ]]; then
        hint="; with --resume, the training continues after its last whole epoch"
    fi
    # On a line of its own, after what may be half of a progress bar.
    printf '\n%s\n' "Stopped by $1: $job_name and its processes have ended$hint." >&3
    exit "$2"
}
