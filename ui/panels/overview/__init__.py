"""Panels of the Overview page: accuracy against cost, the chosen plan, measuring a front."""
