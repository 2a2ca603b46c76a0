# Sourced by train.sbatch and study.sbatch in the repository's root: plan, start a rank per task, requeue.
#
# run_recipe RECIPE [field=value …] trains; its status is that of the rank that failed first.
# requeue_on_75 STATUS JOB WHAT puts the job back into the queue if the status says that this helps.

run_recipe() {
    local status
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # What can be known without a GPU is checked here, once, before all ranks start.
    .venv/bin/rewarm plan "$@" --gpus "$SLURM_NTASKS" --strict >/dev/null || { as_stop $?; return; }
    export REWARM_STATUS=$PWD/.rewarm-$SLURM_JOB_ID.status
    rm -f "$REWARM_STATUS"
    # srun starts one task per rank: the deepspeed launcher would pass signals on one rank after the other.
    srun --kill-on-bad-exit=1 .venv/bin/python launch/train.py "$@" || as_stop $?
    status=$?
    # srun reports the highest status, which may be that of a rank ended because another one failed.
    [[ -s $REWARM_STATUS ]] && status=$(sort -n "$REWARM_STATUS" | head -n 1)
    rm -f "$REWARM_STATUS"
    return "$status"
}

# A program that is asked to stop before Python listens ends with 128 + the signal; a moment later, with 75.
as_stop() {
    (($1 > 128)) && case $(kill -l "$1" 2>/dev/null) in HUP | USR1 | USR2 | TERM | XCPU) return 75 ;; esac
    return "$1"
}

# 75 is EX_TEMPFAIL: stopped by a signal after its save, or the disk, the network or a node failed.
requeue_on_75() {
    local most_restarts=${REWARM_MOST_RESTARTS:-50}
    (($1 == 75)) || return 0
    if ((${SLURM_RESTART_COUNT:-0} < most_restarts)); then
        echo "$3 stopped before its end; requeueing job $2"
        scontrol requeue "$2"
    else
        echo "$3 was restarted $most_restarts times already (REWARM_MOST_RESTARTS); not requeueing" >&2
    fi
}
