"""What every room uses: errors, extras, files written whole, tables as text."""
