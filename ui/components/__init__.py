"""Streamlit components with their own code in the browser."""
