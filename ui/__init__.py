"""The app's screens. Imports go one way: model < charts < components < shell < panels."""
