"""What a network's output says of the noise and of the clean data: the only place that knows the parameterisations.

A network is given x_t = signal * x0 + noise * n. With the variance-preserving schedules signal = sqrt(abar) and noise =
sqrt(1 - abar); with rectified flows signal = 1 - t and noise = t. Salimans & Ho (arXiv 2202.00512, appendix D), Lipman et al.
(arXiv 2210.02747).
"""

from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


def check_prediction(kind: str) -> str:
    """Return the name of a parameterisation; raise ValueError for one that is not known."""
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction type {kind!r} is not supported; known: {', '.join(PREDICTION_TYPES)}")
    return kind


def expected_noise(kind: str, output: Tensor, x_t: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
    """E[n | x_t] from the output of a network, in its shape."""
    match kind:
        case "epsilon":
            return output
        case "v_prediction":
            return signal * output + noise * x_t
        case "sample":
            return (x_t - signal * output) / noise
        case _:
            return x_t + signal * output


def expected_data(kind: str, output: Tensor, x_t: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
    """E[x0 | x_t] from the output of a network, in its shape; also where nothing of x0 is left (signal 0).

    Raises ValueError for a network that predicts the noise where there is nothing but noise.
    """
    match kind:
        case "epsilon":
            if not isinstance(signal, Tensor) and signal == 0:
                raise ValueError("a network that predicts the noise says nothing of the data where there is only noise")
            return (x_t - noise * output) / signal
        case "v_prediction":
            return signal * x_t - noise * output
        case "sample":
            return output
        case _:
            return x_t - noise * output
