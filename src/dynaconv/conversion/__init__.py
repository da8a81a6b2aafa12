"""Models of other toolkits, turned into folders of our models."""
