"""The file that MLflow runs to load a registered supernet ("models from code"); a copy lies beside the weights."""

from mlflow.models import set_model

from nas.scoring import SupernetModel

set_model(SupernetModel())
