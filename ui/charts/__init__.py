"""Figures, one file for each kind: functions from records to plotly figures, without Streamlit."""
