"""The operators beside their alternatives and beside a plain copy, which no operator can beat."""
