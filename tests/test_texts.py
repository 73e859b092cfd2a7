"""All errors in one list, which says what each tells a person to do."""

from __future__ import annotations

import texts

from deslaunch import errors

WITHOUT_A_HINT = {
    # Why these have none: what they say is all that can be said.
    "Declined": "the person said no",
    "Interrupted": "a signal; the command to go on stands below it",
}


def test_the_list_is_that_of_the_source() -> None:
    assert texts.LIST.read_text(encoding="utf-8") == texts.listed(), "python tests/texts.py"


def test_every_error_says_what_to_do() -> None:
    lacking = [
        f"{path}: {text.message}"
        for path, found in texts.texts().items()
        for text in found
        if issubclass(vars(errors).get(text.name, object), errors.DeslaunchError)
        and text.name not in WITHOUT_A_HINT
        and "hint" not in text.more
    ]

    assert lacking == []


def test_every_problem_of_a_row_says_what_was_expected() -> None:
    problems = [text for found in texts.texts().values() for text in found if text.name == "Fault"]

    assert [text.message for text in problems if "expected" not in text.more] == []
