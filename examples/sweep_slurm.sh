#!/bin/bash
# Workers that join one study, as an array of SLURM jobs; each is a whole command, and any of them may be killed.
#
#   sbatch --array=1-8 examples/sweep_slurm.sh anchor=resnet20_cifar10 data.root=$DATA +codec=nnc +sweep=nnc \
#       hydra.sweeper.storage=postgresql://user:password@host/optuna hydra.sweeper.study_name=resnet20
#
# Submit it in an environment that has tracker, or with PYTHON=/path/to/its/python. The study's storage and MLflow's
# (MLFLOW_TRACKING_URI) must be reachable from all nodes; by default both are files below the folder of submission, for
# a few workers on a shared file system. The first job makes the study, the others join it; one of them measures the
# best working point when all trials are done. Submit more of them at any time.
#SBATCH --job-name=tracker
#SBATCH --cpus-per-task=1
#SBATCH --output=tracker-%A-%a.log

threads="${SLURM_CPUS_PER_TASK:-1}"
export OMP_NUM_THREADS="$threads"
exec "${PYTHON:-python}" -m tracker -m "$@" hydra.sweeper.threads="$threads"
