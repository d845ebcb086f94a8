def format_count(number: float) -> str:
    """A number as people say it: three digits, k, M."""
    return f"{number:.3g}" if number < 1000 else f"{number / 1000:.3g}k" if number < 1e6 else f"{number / 1e6:.3g}M"


def format_signed(number: float) -> str:
    """Four decimals, with a real minus."""
    return f"{number:+.4f}".replace("-", "−")
