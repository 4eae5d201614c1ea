"""Finding, converting and loading models; used by the trainer and by the engine. torch is imported lazily."""
