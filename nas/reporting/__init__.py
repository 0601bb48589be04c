"""What a report shows, computed once, and the forms it is shown in; :mod:`nas.report` puts them together."""

from nas.reporting.findings import Findings
from nas.reporting.summary import Progress, Summary, summarise

__all__ = ["Findings", "Progress", "Summary", "summarise"]
