"""What every room uses: errors, extras, files written completely, tables as text."""
