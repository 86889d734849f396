"""The data behind the pages: drafts, plans, sweeps, tables, predictions, state.

Nothing here draws a page. Streamlit serves for session state and caches only.
"""
