"""How far a result is from the right one."""


def relative(x, exact):
    """Norm of the difference over norm."""
    x, exact = x.detach().double().cpu(), exact.detach().double().cpu()
    return float((x - exact).norm() / exact.norm())
