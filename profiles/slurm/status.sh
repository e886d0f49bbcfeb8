# Answers as status.py does in the common case, in 4 ms instead of 50. Snakemake (9.27.1) asks about
# a hundred jobs one by one, and on Ctrl-C does not cancel the job that it is just asking about.
state=.snakemake/slurm
if [ ! -e "$state/$1.exit" ] && [ -n "$(find $state/squeue -newermt '-4 seconds' 2>&-)" ] &&
    grep -Eq "^$1\|(RUNNING\||PENDING\|(None|Resources|Priority|Dependency)$)" $state/squeue; then
    echo running
else
    exec python3 $state/status.py "$1"
fi
