"""The frame around every page: navigation, header, links, theme, errors, downloads."""
