"""The kernel's counters of kills for want of memory."""

from moe_megatron.platform.memory_kills import _read, count_memory_kills


def test_counter_is_found_in_the_files_of_both_versions(tmp_path):
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n")
    control = tmp_path / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert (_read(events), _read(control), _read(tmp_path / "none")) == (2, 5, None)


def test_counting_twice_without_a_kill_gives_no_less():
    first, second = count_memory_kills(), count_memory_kills()
    assert (first is None and second is None) or second >= first >= 0
