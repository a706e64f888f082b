"""Bugs to plant one by one in a copy of the source, and the test file that must notice each: `python tests/mutants.py`.

Needs a system that can fork. Each bug is a piece of a file that occurs once, and what to put in its place.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src"
NETWORKS, SAMPLING = "models/test_networks_by_hand.py", "pipelines/test_sampling_by_hand.py"
LOSSES, STAGES, LOOP = "losses/test_losses_by_hand.py", "stages/test_stages.py", "train/test_fit_by_hand.py"


@dataclass(frozen=True)
class Mutant:
    """A bug.

    Attributes:
        name: What it does.
        file: Under src/contentmotion.
        old: What is there, once.
        new: What is put there.
        test: The file that notices, under tests/.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    # The eighteen that lived through the tests of 14ada2b.
    Mutant("conditions are never dropped", "losses/diffusion.py", "< dropout_prob", "< 0", LOSSES),
    Mutant("conditions are dropped, of the config's share none", "losses/diffusion.py",
           "dropout_prob=config.conditioning_dropout_prob", "dropout_prob=0.0", LOSSES),
    Mutant("snr_gamma is ignored", "losses/diffusion.py", "if snr_gamma is None:", "if True:", LOSSES),
    Mutant("the bound trains the mean", "diffusion.py", "posterior(predicted_x0.detach(), ", "posterior(predicted_x0, ", LOSSES),
    Mutant("content_noise is ignored", "stages/motion.py", "content + self.content_noise *", "content + 0 *", STAGES),
    Mutant("autoencoder: no positions", "models/autoencoder.py", "return (time + space)[None]", "return 0 * (time + space)[None]", NETWORKS),
    Mutant("autoencoder: no time", "models/autoencoder.py", "return (time + space)[None]", "return (0 * time + space)[None]", NETWORKS),
    Mutant("motion DiT: no positions", "models/motion_dit.py", "position = position + self.plane_embed[plane]", "position = 0 * position + self.plane_embed[plane]", NETWORKS),
    Mutant("motion DiT: planes not told apart", "models/motion_dit.py", "+ self.plane_embed[plane]", "+ self.plane_embed[0]", NETWORKS),
    Mutant("guidance reversed", "pipelines/sampling.py", "guide(*output.chunk(2), guidance_scale)", "guide(*output.chunk(2)[::-1], guidance_scale)", SAMPLING),
    Mutant("motion guidance: of the wrong texts", "pipelines/content_motion.py", "null and stage.encode(null | frame)", "null and stage.encode(given | frame)", SAMPLING),
    Mutant("class guidance: of class 0", "pipelines/content_motion.py", "torch.full_like(given, self.num_classes)", "torch.zeros_like(given)", SAMPLING),
    Mutant("motion trained unstandardised", "stages/motion.py", 'return self.standardize(batch["motion"])', 'return batch["motion"]', STAGES),
    Mutant("motion decoded unstandardised", "pipelines/content_motion.py", "stage.standardize(motion, inverse=True)", "motion", SAMPLING),
    Mutant("motion distilled unstandardised", "losses/consistency.py", "x0 = teacher.clean_sample(batch)", "x0 = batch[teacher.field]", LOSSES),
    Mutant("labels are never dropped", "stages/stage.py", "return labels if dropped is None else", "return labels if True else", STAGES),
    Mutant("no zero-terminal SNR", "stages/stage.py", 'rescale_betas_zero_snr=prediction_type != "epsilon"', "rescale_betas_zero_snr=False", STAGES),
    Mutant("loss not divided by accumulation", "train/loop.py", 'losses["loss"] / len(parts)', 'losses["loss"]', LOOP),
    Mutant("gradients are never clipped", "train/optimizers.py", "limit = self.config.max_grad_norm or torch.inf", "limit = torch.inf", LOOP),
    Mutant("Adam's betas swapped", "train/optimizers.py", "(config.adam_beta1, config.adam_beta2)", "(config.adam_beta2, config.adam_beta1)", LOOP),
    Mutant("weight decay is ignored", "train/optimizers.py", "config.adam_weight_decay", "0.0", LOOP),
    # Others of their kind.
    Mutant("texts are never dropped", "stages/text.py", "NULL_PROMPT if drop else prompt", "prompt", STAGES),
    Mutant("cached text features are never dropped", "stages/stage.py", "torch.where(mask, self._null_features()[which], features)", "features", STAGES),
    Mutant("null condition in every item", "losses/diffusion.py", "stage.encode(batch, dropped)", "stage.encode(batch, dropped | True)", LOSSES),
    Mutant("times stop half way", "diffusion.py", "randint(self.num_train_timesteps, (batch_size,), generator)", "randint(self.num_train_timesteps // 2, (batch_size,), generator)", LOSSES),
    Mutant("SNR is not capped", "diffusion.py", ".clamp(max=gamma)", "", LOSSES),
    Mutant("v without its sign", "diffusion.py", "return alpha * noise - sigma * x0", "return alpha * noise + sigma * x0", LOSSES),
    Mutant("the bound in nats", "diffusion.py", "return per_item / math.log(2)", "return per_item", LOSSES),
    Mutant("the variance's share upside down", "diffusion.py", "share = (variance_output + 1) / 2", "share = (1 - variance_output) / 2", LOSSES),
    Mutant("the bound's mean of another time", "diffusion.py", "alphas[(timesteps - 1).clamp(min=0)]", "alphas[(timesteps - 2).clamp(min=0)]", LOSSES),
    Mutant("the learned variance is not trained", "losses/diffusion.py", "variance = output[:, x0.shape[1] :]", "variance = output[:, x0.shape[1] :].detach()", LOSSES),
    Mutant("no boundary condition", "diffusion.py", "c_skip = sigma_data**2 / (", "c_skip = 0 * sigma_data**2 / (", LOSSES),
    Mutant("boundary unscaled", "diffusion.py", "scaled = timesteps.float() * timestep_scaling", "scaled = timesteps.float()", LOSSES),
    Mutant("Huber's c ignored", "diffusion.py", "((a - b).square() + c**2).sqrt().mean() - c", "(a - b).abs().mean()", LOSSES),
    Mutant("teacher unguided in distillation", "losses/consistency.py", "if guidance_scale == 1:", "if True:", LOSSES),
    Mutant("the student is its own target", "losses/consistency.py", "consistency_sample(target, earlier, end, batch)", "consistency_sample(student, earlier, end, batch)", LOSSES),
    Mutant("the target stands still in time", "losses/consistency.py", "consistency_sample(target, earlier, end, batch)", "consistency_sample(target, earlier, start, batch)", LOSSES),
    Mutant("the solver takes no step", "losses/consistency.py", "schedule.predict_noise(output, noisy, start), end)", "schedule.predict_noise(output, noisy, start), start)", LOSSES),
    Mutant("content noise without its deviation", "stages/motion.py", "self.content_noise * std(content, generator) * noise", "self.content_noise * noise", STAGES),
    Mutant("standardised by the variance", "models/layers.py", "(z.float() - mean) / std", "(z.float() - mean) / std**2", NETWORKS),
    Mutant("autoencoder: rows and columns swapped", "models/autoencoder.py", "u_x, u_y = u.mean(dim=3), u.mean(dim=2)", "u_y, u_x = u.mean(dim=3), u.mean(dim=2)", NETWORKS),
    Mutant("autoencoder: patches transposed", "models/autoencoder.py", ".permute(0, 1, 6, 2, 4, 3, 5)", ".permute(0, 1, 6, 2, 5, 3, 4)", NETWORKS),
    Mutant("autoencoder: softmax over places", "models/autoencoder.py", ".float().softmax(dim=1)", ".float().softmax(dim=-1)", NETWORKS),
    Mutant("autoencoder: content frame added always", "models/autoencoder.py", "if self.config.residual_decoding else frames", "if True else frames", NETWORKS),
    Mutant("motion DiT: content's patch size ignored", "models/motion_dit.py", "nn.Conv2d(content_channels, hidden_size, content_patch_size, stride=content_patch_size)", "nn.Conv2d(content_channels, hidden_size, content_patch_size, stride=content_patch_size // 2)", NETWORKS),
    Mutant("motion DiT: patches transposed", "models/motion_dit.py", "x.permute(0, 5, 1, 3, 2, 4)", "x.permute(0, 5, 1, 4, 2, 3)", NETWORKS),
    Mutant("motion DiT: no timestep", "models/motion_dit.py", "sincos_embedding(FREQUENCY_DIM, timesteps)", "sincos_embedding(FREQUENCY_DIM, 0 * timesteps)", NETWORKS),
    Mutant("motion DiT: no shift at the end", "models/motion_dit.py", "modulate(self.norm_out(x), shift, scale)", "modulate(self.norm_out(x), 0 * shift, scale)", NETWORKS),
    Mutant("sine before cosine", "models/layers.py", "torch.cat([angles.cos(), angles.sin()], dim=-1)", "torch.cat([angles.sin(), angles.cos()], dim=-1)", NETWORKS),
    Mutant("grid: rows for columns", "models/layers.py", "return torch.cat([rows, columns], dim=-1)", "return torch.cat([columns, rows], dim=-1)", NETWORKS),
    Mutant("sampling: the variance for the mean", "pipelines/sampling.py", "output[:, :channels]", "output[:, -channels:]", SAMPLING),
    Mutant("negative prompts are ignored", "pipelines/base.py", "[negatives or NULL_PROMPT]", "[NULL_PROMPT]", SAMPLING),
    Mutant("the motion's guidance is the content's", "pipelines/content_motion.py", "guidance_scale=sampling.motion_guidance_scale", "guidance_scale=sampling.guidance_scale", SAMPLING),
    Mutant("given motion noise is ignored", "pipelines/content_motion.py", "stage, (size, *planes), motion_latents,", "stage, (size, *planes), None,", SAMPLING),
    Mutant("no average", "train/optimizers.py", "torch._foreach_lerp_(self.values, new, 1 - decay)", "torch._foreach_lerp_(self.values, new, 1.0)", LOOP),
    Mutant("the average does not warm up", "train/optimizers.py", "min(self.decay, (1 + count) / (10 + count))", "self.decay", LOOP),
    Mutant("no warm-up of the rate", "train/optimizers.py", "num_warmup_steps=-(-config.lr_warmup_steps // player.every)", "num_warmup_steps=0", LOOP),
    Mutant("the schedule's end elsewhere", "train/optimizers.py", "max(1, config.max_train_steps // player.every)", "max(1, 2 * config.max_train_steps // player.every)", LOOP),
    Mutant("gradients clipped at 1 where they are not to be", "train/optimizers.py", "self.config.max_grad_norm or torch.inf", "self.config.max_grad_norm or 1.0", LOOP),
]  # fmt: skip


def plant(mutant: Mutant, folder: Path) -> None:
    """Copies the source into the folder, with the bug in it."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (folder / "contentmotion/assets").symlink_to(SOURCE / "contentmotion/assets")
    file = folder / "contentmotion" / mutant.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} has {mutant.old!r} {text.count(mutant.old)} times"
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(source: Path, test: str, log: Path) -> int:
    """Runs a test file against a source tree, in a process that shares the imports of this one; pytest's status."""
    log.touch()
    child = os.fork()
    if not child:
        status = 99
        try:
            out = os.open(log, os.O_WRONLY)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.path.insert(0, str(source))
            sys.dont_write_bytecode = True
            quiet = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            status = int(pytest.main(["-q", "-x", "-n0", *quiet, str(TESTS / test)]))
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def import_others() -> None:
    """Imports what our modules import, which takes longest, and forgets our modules again."""
    for file in sorted({mutant.file for mutant in MUTANTS}):
        importlib.import_module("contentmotion." + file.removesuffix(".py").replace("/", "."))
    for name in [name for name in sys.modules if name.split(".")[0] == "contentmotion"]:
        del sys.modules[name]


def main(names: list[str]) -> int:
    """Plants the bugs with one of the words in their names, or all; returns how many live."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import_others()
    alive = 0
    for mutant in MUTANTS:
        if names and not any(name in mutant.name for name in names):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                plant(mutant, Path(folder) / "src")
            except AssertionError as error:
                print(f"GONE   {error}")
                alive += 1
                continue
            log = Path(folder) / "log"
            status = run_tests(Path(folder) / "src", mutant.test, log)
            failed = [line.split(" - ")[0] for line in log.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
            alive += status != 1
            print(f"{'killed' if status == 1 else 'LIVES '} {mutant.name}: {' '.join(failed)} ({time.monotonic() - started:.0f} s)", flush=True)
    return alive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
