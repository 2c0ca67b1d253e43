"""The configuration: where it stands, how it is composed and checked, and how a run writes it down."""
