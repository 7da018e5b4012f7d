"""Numbers and texts as people read them."""

LENGTH = 60  # characters of a value in an error message


def truncated(value: object) -> str:
    """Return a value as text, cut after its first 60 characters."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LENGTH else f"{text[:LENGTH]}..."


def compact(number: float) -> str:
    """Return 1234567 as "1.23M": for rates and counts."""
    power, unit = next(
        ((power, unit) for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")) if number >= 10**power), (0, "")
    )
    return f"{number / 10**power:#.3g}".rstrip(".") + unit


def duration(seconds: float) -> str:
    """Return seconds as "0.42 s", "3.1 s", "2 min 5 s" or "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 60 else f"{hours} h {minutes % 60} min"
