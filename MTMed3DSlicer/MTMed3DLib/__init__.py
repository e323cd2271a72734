"""The pieces of the MTMed3D module: logic without Qt, and the panel that shows it."""
