"""The detection benchmark: truth by heavy sampling, and what verdicts are fitted on and measured against."""
