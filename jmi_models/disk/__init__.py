"""What files hold, in words and numbers that every room needs: axis order, headers, bounds, messages."""
