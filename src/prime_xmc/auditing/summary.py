"""The audit in a few lines for the terminal."""

from prime_xmc.auditing.audit_data import Audit
from prime_xmc.auditing.findings import SEVERITIES


def summary(audit: Audit, *, remarks: bool = True) -> str:
    """Return what was found, a finding with its advice each, and what filtering the pairs that were found would do.

    Args:
        audit: The audit.
        remarks: Whether remarks have a line each; otherwise they are counted.
    """
    lines = [", ".join(f"{value:,} {name}" for name, value in audit.counts.items())]
    shown = SEVERITIES if remarks else SEVERITIES[:-1]
    for finding in audit.findings:
        if finding.about.severity in shown:
            lines.append(f"{finding.about.severity:<7}  {finding.sentence()}")
            lines += [f"{'':<7}    line {each.line}: {each.text}" for each in finding.examples[:1]]
            if finding.about.severity != "remark":
                lines.append(f"{'':<7}    {finding.about.advice}")
    num_remarks = sum(finding.about.severity == "remark" for finding in audit.findings)
    if num_remarks and not remarks:
        lines.append(f"{num_remarks} remark{'s' * (num_remarks != 1)} on the page")
    for split, count in audit.num_emptied.items():
        if count:
            misses = ", and count as misses" if split == "test" else ""
            lines.append(f"with write_filters=true {count:,} {split} queries would have no label{misses}")
    if not audit.findings:
        lines.append("nothing was found")
    return "".join(f"{line}\n" for line in lines)
