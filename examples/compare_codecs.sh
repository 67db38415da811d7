#!/usr/bin/env bash
# All codecs on the default anchor, side by side in MLflow: sort the runs table by size/rate_percent.
set -euo pipefail
python -m tracker -m '+codec=nnc,int8,int4,fp16,bf16,zstd'
python -m tracker -m +codec=nnc codec.nnc.qp=-36,-32,-28,-24,-20
echo "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db"
