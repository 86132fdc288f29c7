"""mlmx: compare masked-language-model pretraining objectives, exactly and at equal cost."""

__version__ = "0.1.0"
