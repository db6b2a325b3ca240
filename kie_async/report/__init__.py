"""Write a page to compare the takes of a folder by ear, and copy the takes chosen there (the extra ``audio``)."""

from kie_async.report._folder import REPORT_NAME, ReportError
from kie_async.report._report import write_report
from kie_async.report._select import Selection, select_takes

__all__ = ["REPORT_NAME", "ReportError", "Selection", "select_takes", "write_report"]
