"""What a report shows, computed once, and the forms it is shown in; :mod:`nas.report` puts them together."""

from nas.reporting.summary import Progress, Summary, summarise

__all__ = ["Progress", "Summary", "summarise"]
