"""Write ``docs/hostile.md``: hostile files and requests, and what becomes of them.

Run by ``make hostile``. Every row names tests of the suite; they are run, and each passed case is
one file or request that had the outcome which the row states.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.case_table import Row, rows_text, write_page

PAGE = ROOT / "docs" / "hostile.md"
FUZZ = 1_000  # examples of each test with random changes; the suite has 30
_HEAD = """\
# Hostile inputs

What happens to files and requests that are made to do harm. `make hostile` runs these tests of the
suite and writes this page. A case is a passed test of one file, link, text, or request and its
variants; a test of `hypothesis` is one case, whatever number of inputs it tries.
[Security](security.md) says what is trusted and what is not.

| input | outcome | cases | longest, s | tests |
|---|---|---|---|---|
"""


ROWS = (
    Row(
        "checkpoints that are damaged, of another kind, or would run code",
        "refused in one line that says what the file is; no code runs",
        ("zoo/test_checkpoint.py::test_bad_files_are_rejected",),
    ),
    Row(
        "pruned files with a false or deeply nested header",
        "refused: damaged, inconsistent, or of a newer format",
        (
            "zoo/test_checkpoint.py::test_hostile_metadata",
            "zoo/test_checkpoint.py::test_deeply_nested_metadata",
            "zoo/test_formats.py::test_damaged_headers_are_refused",
        ),
    ),
    Row(
        "small files that declare far more bytes than they hold",
        "refused before memory is asked for",
        (
            "zoo/test_declared_sizes.py::test_a_head_that_repeats_one_row",
            "zoo/test_declared_sizes.py::test_it_is_found_wherever_it_lies",
            "zoo/test_declared_sizes.py::test_a_squeezed_pickle_is_never_unpacked",
            "zoo/test_checkpoint.py::test_small_file_with_a_huge_tensor",
        ),
    ),
    Row(
        "plans and tables with up to 100,000 nested brackets, or no text at all",
        "refused as no valid document",
        (
            "zoo/test_declared_sizes.py::test_nested_brackets",
            "zoo/test_declared_sizes.py::test_nested_values_of_a_record",
            "ui/test_consent.py::test_nested_plan_files",
        ),
    ),
    Row(
        "names that are too long or contain a zero, typed, uploaded or in a link",
        "refused as no file, or cut to a name that fits",
        (
            "zoo/test_declared_sizes.py::test_long_names_of_files",
            "zoo/test_declared_sizes.py::test_long_names_of_images",
            "ui/test_consent.py::test_bad_names_in_a_link",
            "ui/test_consent.py::test_long_names_of_uploads_and_folders",
        ),
    ),
    Row(
        "links to plans that are damaged, mistyped, or grow when unpacked",
        "refused; never another plan",
        (
            "plan/test_link.py::test_invalid_texts_are_rejected",
            "plan/test_link.py::test_mistyped_link_never_gives_another_plan",
        ),
    ),
    Row(
        "images that are damaged, of another kind, or unpack to gigabytes",
        "named and skipped, or refused",
        (
            "data/test_folder.py::test_damaged_image_is_named",
            "data/test_folder.py::test_hostile_image_is_named",
            "data/test_folder.py::test_decompression_bomb",
            "data/test_folder.py::test_only_common_formats_are_decoded",
        ),
    ),
    Row(
        "folders with circles of links, exponentially many paths, pipes and devices",
        "refused, or left out without being opened",
        (
            "data/test_folder.py::test_looping_links",
            "data/test_folder.py::test_exponential_links_are_rejected",
            "data/test_folder.py::test_special_files_are_never_opened",
        ),
    ),
    Row(
        "NumPy files with pickles, false headers or sizes",
        "refused; no pickle is read",
        (
            "data/test_npz.py::test_npz_with_wrong_arrays",
            "data/test_npz.py::test_damaged_npz_is_named",
            "data/test_npz.py::test_wrong_array_header",
            "data/test_npz.py::test_wrong_size_in_zip_directory",
            "data/test_npz.py::test_archive_larger_than_memory",
            "data/test_npz.py::test_unsupported_compression",
        ),
    ),
    Row(
        "label files of ImageNet that are damaged",
        "refused, with the line",
        (
            "data/test_imagenet.py::test_invalid_label_file",
            "data/test_imagenet.py::test_binary_label_file",
            "data/test_imagenet.py::test_damaged_devkit",
        ),
    ),
    Row(
        "Markdown, HTML, pictures and addresses in URLs, names, titles and errors",
        "shown as text; the browser loads nothing",
        (
            "ui/test_foreign.py::test_no_page_draws_what_others_wrote",
            "ui/test_foreign.py::test_the_url_is_not_drawn",
            "ui/test_foreign.py::test_markdown_has_no_live_part",
        ),
    ),
    Row(
        "links that name a file or images",
        "nothing is read before the user asks for it",
        (
            "ui/test_consent.py::test_a_file_in_a_link_is_read_when_asked",
            "ui/test_consent.py::test_images_in_a_link_are_not_prepared",
        ),
    ),
    Row(
        "requests to an app that others can reach, without its token or with a wrong one",
        "401 or 403, and nothing of the app",
        (
            "ui/test_access.py::test_nothing_passes_without_the_cookie",
            "ui/test_access.py::test_no_websocket_without_the_cookie",
            "ui/test_access.py::test_a_wrong_token",
            "ui/test_access.py::test_pages_of_an_exposed_app",
            "ui/test_access.py::test_the_websocket_of_an_exposed_app",
            "ui/test_access.py::test_uploads_and_downloads_of_an_exposed_app",
        ),
    ),
    Row(
        "requests of other pages, and of other machines where no login was asked for",
        "403",
        (
            "ui/test_access.py::test_other_pages_are_refused",
            "ui/test_access.py::test_an_app_that_was_not_told_refuses_other_machines",
        ),
    ),
    Row(
        "addresses that would lead a login elsewhere",
        "a redirect within the app",
        ("ui/test_access.py::test_a_token_becomes_a_cookie",),
    ),
    Row(
        "paths outside the folders of an app that others can reach",
        "refused with one answer, whether anything is there or not",
        (
            "ui/test_roots.py::test_paths_outside_get_one_answer",
            "ui/test_roots.py::test_links_to_what_is_outside",
            "ui/test_roots.py::test_typed_folders_and_images",
            "ui/test_roots.py::test_jobs_on_what_is_outside_do_not_start",
        ),
    ),
    Row(
        f"plans, tables, links and headers, each with {FUZZ:,} random changes (`hypothesis`)",
        "read, or refused in one line; no other error",
        ("records/test_fuzz.py",),
    ),
)


def page_text(cases: Counter[str], longest: dict[str, float]) -> str:
    """Return the page."""
    return _HEAD + rows_text(ROWS, cases, longest)


def main() -> None:
    """Run the tests and write the page."""
    os.environ["PSVIT_FUZZ"] = str(FUZZ)
    write_page(PAGE, ROWS, page_text)


if __name__ == "__main__":
    main()
