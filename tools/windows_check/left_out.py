"""What the check with Windows' Python leaves out, and why; it says so each time."""

from __future__ import annotations

_LINUX = "it is about Linux's own files"
_CHECK = "it is about a check that runs Windows programs on Linux"
_BROWSER = "there is no browser for Windows"
_PACKAGES = "PyPI's packages that it needs are not in windows-packages.txt"

# Files of tests of which nothing would be run.
FILES = {
    "test_dml_check": _CHECK,
    "test_npu_check": _CHECK,
    "test_windows_check": _CHECK,
    "test_drivers": _LINUX,
    "test_hardware": _LINUX,
    "test_inventory": _LINUX,
    "test_monitor_linux": _LINUX,
    "test_page": _BROWSER,
    "test_page_demo": _BROWSER,
    "test_nncf": _PACKAGES,
    "test_transformers": _PACKAGES,
}

_LINKS = "Wine 8 says that it has made a symbolic link, and makes none"

# Tests that fail for what Wine 8 lacks, by the beginnings of their names; they would say nothing of Windows.
TESTS = {
    "test_hub.py::test_what_another_program_has_downloaded_is_used_without_a_request": _LINKS,
    "test_checkpoint.py::test_links_into_a_cache_are_followed": _LINKS,
    "test_checkpoint.py::test_a_broken_link_is_named": _LINKS,
    "test_on_windows.py::test_what_is_open_is_replaced_as_soon_as_it_is_let_go[folder": (
        "Wine 8 renames a folder although a file in it is open"
    ),
    "test_on_windows.py::test_counters_are_read_by_instance": "Wine 8's counters have no instances",
    "test_monitor.py::test_the_cpu_is_seen_at_work_and_the_work_is_ours": (
        "Wine 8 tells a part of another process's time"
    ),
    "test_on_windows.py::test_ctrl_break_ends_an_answer_and_leaves_nothing": (
        "Wine 8 sends no Ctrl+Break to a group of processes"
    ),
}
