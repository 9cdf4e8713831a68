"""What a test records of the kernels that ran."""

# What makes gate inputs.
PROJECTIONS = {"input_projection", "cublas", "arrange_products"}


class Launches(list):
    """Names of the kernels started, in order."""

    @property
    def scan_count(self) -> int:
        return sum(name not in PROJECTIONS for name in self)

    def has_only(self, kernel: str) -> bool:
        """Whether there were some, and no scans of another kernel."""
        own = {"step_scan", "whole_step"} if kernel == "step" else {f"{kernel}_scan"}
        return self.scan_count > 0 and set(self) <= own | PROJECTIONS
