"""What a run has trained, uploaded to the Hugging Face hub (`push_to_hub`): the adapter or model and its tokenizer, and
nothing else of the run's folder. The token is the environment's (`HF_TOKEN`, `hf auth login`)."""

from concurrent.futures import Future
from pathlib import Path

from transformers import TrainerCallback

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import Run
from workbench.storage.hub import endpoint, first_line
from workbench.train.metrics_log import log

_FILES = (
    "adapter_model*.safetensors*", "adapter_config.json", "model*.safetensors*", "config.json",
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template.jinja", "added_tokens.json",
    "vocab.json", "merges.txt", "README.md",
)  # fmt: skip


class Push(TrainerCallback):
    """Uploads at checkpoints, as `hub_strategy` says, and at the end. What fails is told and ends no run."""

    def __init__(self, run: Run, config: RunConfig):
        """Makes the repository.

        Raises:
            UserError: the hub cannot be reached, or does not let the token's owner do so.
        """
        from huggingface_hub import HfApi

        self._run, self._strategy = run, config.hub_strategy
        self._api, self._running = HfApi(endpoint=endpoint()), None
        name = config.hub_model_id or run.id
        try:
            self.repository = self._api.create_repo(name, private=config.hub_private_repo, exist_ok=True).repo_id
        except Exception as error:  # the hub's client raises many kinds
            raise UserError("push_refused", name=name, place=endpoint(), reason=first_line(error)) from None
        log(f"What is trained goes to {endpoint()}/{self.repository}.")

    def on_save(self, args, state, control, **kwargs):
        if self._strategy == "end" or not self._run.writes:
            return
        if isinstance(self._running, Future) and not self._running.done():
            log(f"The last upload still runs: checkpoint-{state.global_step} is left out.")
            return
        self._collect()
        folder = self._run.path / f"checkpoint-{state.global_step}"
        place = {"checkpoint": "last-checkpoint", "all_checkpoints": folder.name}.get(self._strategy)
        words = f"Step {state.global_step}"
        if place:
            self._running = self._upload(folder, place, None, words)
        else:
            self._running = self._upload(folder, "", _FILES, words)

    def finish(self) -> str:
        """Upload what the run has ended with; why that failed, or nothing."""
        if isinstance(self._running, Future):
            self._running.exception()  # waits
        self._collect()
        self._running = self._upload(self._run.path, "", _FILES, "End of training")
        self._running.exception()
        return self._collect()

    def _upload(self, folder: Path, place: str, only, words: str) -> Future:
        return self._api.upload_folder(
            repo_id=self.repository,
            folder_path=str(folder),
            path_in_repo=place or None,
            allow_patterns=list(only) if only else None,
            commit_message=words,
            run_as_future=True,
        )

    def _collect(self) -> str:
        done, self._running = self._running, None
        error = done.exception() if isinstance(done, Future) else None
        if error is None:
            return ""
        told = Message("push_failed", name=self.repository, reason=first_line(error))
        log(f"Warning: {told}")
        self._run.warn(told)
        return told
