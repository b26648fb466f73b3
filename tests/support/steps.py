"""Look at gradients just before an optimizer uses them. Trainers step without torch's own hooks."""


def before_step(optimizer, look):
    """Call `look()` before each step of the optimizer."""
    step = optimizer.step

    def watched():
        look()
        return step()

    optimizer.step = watched
