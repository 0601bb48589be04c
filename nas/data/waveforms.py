"""Waveforms and their log-mel features, with nothing but torch and the standard library."""

import io
import math
import wave
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["LogMel", "decode_wav", "mel_filters", "resample"]


def decode_wav(content: bytes) -> tuple[Tensor, int]:
    """Return the waveform ``(N,)`` in [-1, 1], channels averaged, and its sample rate in Hz.

    Raises:
        ValueError: the bytes are no uncompressed WAV file of 8, 16, 24 or 32 bits.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"audio must be an uncompressed WAV file ({error}); convert it") from error
    raw = torch.frombuffer(bytearray(samples), dtype=torch.uint8).view(-1, width).double()
    if width == 1:  # unsigned, unlike the wider ones
        values = raw[:, 0] - 128
    else:
        places = torch.tensor([256.0**place for place in range(width)], dtype=torch.float64)
        values = raw @ places
        values = torch.where(raw[:, -1] >= 128, values - 256.0**width, values)
    return (values.view(-1, channels).mean(1) / 2 ** (8 * width - 1)).float(), rate


def resample(waveform: Tensor, factor: float) -> Tensor:
    """Return ``waveform`` ``(N,)`` with ``round(N / factor)`` samples, by cutting or padding its spectrum.

    Played at the old sample rate it is faster, and higher in pitch, by ``factor``; with ``factor`` the old over the new
    sample rate it sounds as before. Frequencies that the new samples cannot carry are removed.

    Raises:
        ValueError: ``factor <= 0``, or nothing would be left.
    """
    size = round(len(waveform) / factor) if factor > 0 else 0
    if size < 1:
        raise ValueError(f"resampling needs a factor > 0 that leaves a sample, got {factor} for {len(waveform)}")
    if size == len(waveform):
        return waveform
    moved: Tensor = torch.fft.irfft(torch.fft.rfft(waveform), size)
    return moved * (size / len(waveform))


def mel_filters(sample_rate: int, fft: int, mels: int) -> Tensor:
    """Return triangular filters ``(mels, fft // 2 + 1)`` of peak 1, equally spaced in mel from 0 Hz to the half rate.

    The mel scale is ``2595 log10(1 + f / 700)``. A filter rises from the centre of the one before it and falls to that
    of the next.

    Raises:
        ValueError: a filter is so narrow that it falls between two frequencies of the transform.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.arange(fft // 2 + 1, dtype=torch.float64) * sample_rate / fft
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    empty = torch.nonzero(filters.sum(1) == 0).flatten().tolist()
    if empty:
        raise ValueError(
            f"{mels} mel filters are too narrow for a transform of {fft} samples at {sample_rate} Hz (filters {empty} "
            "are empty); use fewer mels or a longer window"
        )
    return filters.float()


@dataclass(frozen=True)
class LogMel:
    """Log-mel features of waveforms: ``log(filters |STFT|^2 + 1e-6)``, per recording with zero mean in every mel.

    Subtracting the mean over time removes what the microphone does to the spectrum, as is usual in speaker
    recognition. The transform is zero-padded to the power of two that is at least twice the window.

    Args:
        sample_rate: in Hz.
        mels: features per frame.
        window: length of a Hamming window, in seconds.
        hop: between windows, in seconds.
        centre: whether to subtract the mean over the recording.

    Raises:
        ValueError: a size is out of range, or there are too many mels for the window.
    """

    sample_rate: int = 16_000
    mels: int = 80
    window: float = 0.025
    hop: float = 0.01
    centre: bool = True

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.mels, self.window_samples, self.hop_samples) < 1:
            raise ValueError(
                "sample_rate and mels must be at least 1, window and hop at least one sample, got "
                f"sample_rate={self.sample_rate}, mels={self.mels}, window={self.window}, hop={self.hop}"
            )
        _ = self._filters

    @property
    def window_samples(self) -> int:
        """Length of the window in samples."""
        return round(self.window * self.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Step between windows in samples."""
        return round(self.hop * self.sample_rate)

    @property
    def fft(self) -> int:
        """Samples of the transform."""
        return 1 << (2 * self.window_samples - 1).bit_length()

    @cached_property
    def _filters(self) -> Tensor:
        return mel_filters(self.sample_rate, self.fft, self.mels)

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return ``(frames, mels)`` of ``(N,)``; the last samples that fill no window are left out.

        A waveform shorter than one window is padded with zeros to one.
        """
        size = self.window_samples
        padded = torch.nn.functional.pad(waveform, (0, max(0, size - len(waveform))))
        frames = padded.unfold(0, size, self.hop_samples) * torch.hamming_window(size, periodic=False)
        power = torch.fft.rfft(frames, self.fft).abs() ** 2
        features: Tensor = torch.log(power @ self._filters.T + 1e-6)
        return features - features.mean(0) if self.centre else features
