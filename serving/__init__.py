"""The online funnel: loads a release and answers requests over HTTP."""
