# shellcheck shell=bash
# What every batch script of examples/slurm does in the same way. A script sets MOE_RUN, sources its
# site's _env.sh and this file, and calls `train` with the words that `moe-megatron train` would get:
#
#   train      check the nodes, start the ranks, judge the attempt, and go on, again, or end
#   moe        moe-megatron once, on this node
#   on_nodes   a program once on each node of the job
#
# Decisions are made by `moe-megatron slurm verdict`, which reads the run folder, and not by the exit
# code of srun. This file starts, waits, passes signals on and does what the verdict says.

: "${MOE_CONTAINER:=none}" "${MOE_IMAGE:=}" "${MOE_MOUNTS:=}" "${MOE_CHECK_SECONDS:=300}"
bad=       # nodes that failed their check, with commas
stopping=0 # 1 after SLURM has said that time is short
step=      # the process id of the srun that trains
script_words=("$@")
# Since 22.05 srun forgets what sbatch was told, and would give each task one core.
[ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

say() { echo "== $(date +%FT%T) job ${SLURM_JOB_ID-} attempt ${SLURM_RESTART_COUNT:-0}: $*"; }

# --- where a program runs: in a container or not -------------------------------------------------

# Sets `inside`, the words in front of a program, and `step_options`, options of srun.
choose_container() {
    inside=() step_options=()
    case $MOE_CONTAINER in
        none) ;;
        pyxis) # https://github.com/NVIDIA/pyxis: a plugin of srun, over enroot
            step_options=("--container-image=$MOE_IMAGE" "--container-workdir=$PWD" --no-container-mount-home)
            step_options+=("--container-mounts=$PWD:$PWD${MOE_MOUNTS:+,$MOE_MOUNTS}")
            ;;
        apptainer)
            inside=(apptainer exec --bind "$PWD${MOE_MOUNTS:+,$MOE_MOUNTS}" --pwd "$PWD")
            [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] || inside+=(--nv)
            inside+=("$MOE_IMAGE")
            ;;
        *)
            say "MOE_CONTAINER is '$MOE_CONTAINER'; it must be none, pyxis or apptainer" >&2
            exit 2
            ;;
    esac
}

# Runs moe-megatron once, on the first node.
moe() {
    if [ "$MOE_CONTAINER" = pyxis ]; then
        srun --nodes=1 --ntasks=1 --overlap "${step_options[@]}" moe-megatron "$@"
    else
        "${inside[@]}" moe-megatron "$@"
    fi
}

# Runs a program once on each node.
on_nodes() {
    srun --ntasks-per-node=1 --kill-on-bad-exit=1 "${step_options[@]}" "${inside[@]}" "$@"
}

# --- before: are the nodes well, and where does the first rank listen ----------------------------

# Examines each node by an srun of its own, because one dead node ends a common one.
# Sets `bad`.
check_nodes() {
    local folder=$MOE_RUN/slurm/health/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} host code
    local passed=0 broken=0 earlier
    local -A checks=()
    mkdir -p "$folder"
    for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        timeout --kill-after=10 "$MOE_CHECK_SECONDS" \
            srun --nodes=1 --ntasks=1 --nodelist="$host" --overlap "${step_options[@]}" "${inside[@]}" \
            moe-megatron slurm check-node --gpus "${SLURM_GPUS_ON_NODE:-0}" --clock "$(date +%s)" \
            --disk "$MOE_RUN" ${MOE_CHECK_OPTIONS[@]+"${MOE_CHECK_OPTIONS[@]}"} \
            > "$folder/$host.txt" 2>&1 &
        checks[$host]=$!
    done
    for host in "${!checks[@]}"; do
        wait_for "${checks[$host]}" && code=0 || code=$?
        [ $code != 127 ] || broken=1 # the command is not there
        [ $code != 0 ] || { passed=$((passed + 1)) && continue; }
        bad+=${bad:+,}$host
        say "node $host is not well (code $code):"
        grep -E "^FAIL|error" "$folder/$host.txt" || tail -n 3 "$folder/$host.txt"
    done
    [ -n "$bad" ] || return 0
    earlier=$(find "$MOE_RUN/slurm/health" -path "*/$SLURM_JOB_ID.*/bad" | wc -l)
    echo "$bad" > "$folder/bad"
    if [ $broken = 1 ] || [ "$earlier" -ge 3 ] || { [ $passed = 0 ] && [ ${#checks[@]} -gt 1 ]; }; then
        say "the environment is at fault rather than the nodes, or what is asked of them; see $folder"
        cancel_successors
        exit 1
    fi
}

# Sets MASTER_ADDR and MASTER_PORT. The port is another one for each attempt, as ranks of the last one
# may still hold theirs.
choose_rendezvous() {
    local first
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    if ! getent hosts "$first" > /dev/null; then # a name that only SLURM knows
        first=$(scontrol --oneliner show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    fi
    export MASTER_ADDR=$first
    export MASTER_PORT=$((10000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0} % 16) % 20000))
}

# --- during --------------------------------------------------------------------------------------

# Waits for a process to end, whatever signals come meanwhile; returns its exit code.
wait_for() {
    local code=0
    while :; do
        wait "$1" && code=0 || code=$?
        kill -0 "$1" 2> /dev/null || return $code
    done
}

on_usr1() { # SLURM sends it some time before the limit: #SBATCH --signal=B:USR1@SECONDS
    stopping=1
    say "time is short: the ranks save and end"
    [ -z "$step" ] || kill -USR1 "$step" # srun passes it on to all processes of the step
}

train() {
    local words resume=() code=0 logs
    trap on_usr1 USR1
    choose_container
    words=(--run-dir "$MOE_RUN" ${MOE_TRAIN_OPTIONS[@]+"${MOE_TRAIN_OPTIONS[@]}"} "$@")
    conclude --before "${words[@]}"
    check_nodes
    if [ -n "$bad" ]; then
        start_again
    fi
    choose_rendezvous
    if [ -e "$MOE_RUN/checkpoints/latest_checkpointed_iteration.txt" ]; then
        # Options such as --finetune are for the weights that a run begins with, not for its own.
        resume=(--load "$MOE_RUN/checkpoints" --set megatron.finetune=null)
    fi
    logs=$MOE_RUN/slurm/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    mkdir -p "$logs"
    if [ $stopping = 0 ]; then
        say "training on $SLURM_JOB_NODELIST; output is in $logs"
        # The ranks of a node share its cores: torchrun, the one task there, is bound to none.
        srun --ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none --output="$logs/node%n.log" \
            "${step_options[@]}" "${inside[@]}" \
            moe-megatron slurm node --processes "$MOE_PROCESSES_PER_NODE" "${words[@]}" "${resume[@]}" &
        step=$!
        wait_for $step || code=$?
        step=
        say "the ranks have ended (srun: $code)"
        [ $code = 0 ] || tail -n 20 "$logs/node0.log"
    fi
    [ $stopping = 0 ] || words=(--stopped "${words[@]}")
    conclude "${words[@]}"
    start_again
}

# --- after: what the verdict says ----------------------------------------------------------------

# Returns where there is more to do; ends the job otherwise.
conclude() {
    local code=0
    moe slurm verdict --job "$SLURM_JOB_ID" --remove-target "$@" || code=$?
    case $code in
        75) return ;;
        0) exit 0 ;;
        *)
            cancel_successors
            exit $code
            ;;
    esac
}

# The jobs of a chain: pending, of this name, and waiting for this one (--dependency=singleton).
successors() {
    squeue --noheader --me --name="$SLURM_JOB_NAME" --states=PENDING --format="%i %E" \
        | awk -v own="$SLURM_JOB_ID" '$1 != own && $2 ~ /^singleton/ { print $1 }'
}

cancel_successors() {
    local job
    for job in $(successors); do
        say "cancelling job $job, which would go on from here"
        scancel "$job"
    done
}

# Hands over to the next job of a chain, or has SLURM start this one again, without bad nodes.
start_again() {
    local job next
    next=$(successors)
    if [ -n "$next" ]; then
        say "job ${next%%$'\n'*} goes on"
        for job in ${bad:+$next}; do exclude "$job"; done
        exit 75
    fi
    if [ "$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
        say "the job was cancelled: it is not started again"
        exit 75
    fi
    trap '' TERM # with which SLURM ends this script when it takes the job back
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        say "this cluster does not start jobs again; submit it once more to go on"
        exit 75
    fi
    [ -z "$bad" ] || exclude "$SLURM_JOB_ID"
    exit 75
}

# Excludes the bad nodes from a job that waits, beside those that are excluded already.
exclude() {
    local before
    before=$(scontrol --oneliner show job "$1" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')
    [ "$before" != "(null)" ] || before=
    if ! scontrol update "jobid=$1" "excnodelist=${before:+$before,}$bad"; then
        say "submitting anew without $bad: this SLURM excludes no nodes from a job that waits"
        scontrol write batch_script "$SLURM_JOB_ID" "$MOE_RUN/slurm/again.sbatch" > /dev/null
        scancel "$1"
        sbatch --exclude="${before:+$before,}$bad" --nodes="$SLURM_JOB_NUM_NODES" \
            --job-name="$SLURM_JOB_NAME" "$MOE_RUN/slurm/again.sbatch" "${script_words[@]}"
    fi
}
