"""What a file is, by its first bytes, before any reader may interpret it."""

# A reader that is left to guess opens playlists and scripts that name other files; these containers cannot.
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def container(data: bytes) -> str | None:
    """Return the container of a clip as ffmpeg names its demuxer, or None if it is not one that is read here."""
    if data[4:8] in _BOXES:
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return None
