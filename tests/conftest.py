"The order of the tests: long ones first, so that none is left for the end."


def pytest_collection_modifyitems(items):
    # with `--dist worksteal` each of two processes starts with one half of this list
    slow = [i for i in items if i.get_closest_marker("slow")]
    rest = [i for i in items if not i.get_closest_marker("slow")]
    half = len(rest) // 2
    items[:] = slow[::2] + rest[:half] + slow[1::2] + rest[half:]
