"""Names of the kernels that ran, as a test records them."""

# Kernels that compute gate inputs.
PROJECTIONS = {"input_projection", "cublas", "arrange_products"}


class Launches(list):
    """The names of the kernels started, in order."""

    @property
    def scan_count(self) -> int:
        """Return how many of the kernels are scans: all except projections."""
        return sum(name not in PROJECTIONS for name in self)

    def has_only(self, kernel: str) -> bool:
        """Return whether scans of ``kernel`` ran, and no scans of another kernel."""
        scans = {"step_scan", "whole_step"} if kernel == "step" else {f"{kernel}_scan"}
        return self.scan_count > 0 and set(self) <= scans | PROJECTIONS
