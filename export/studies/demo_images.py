"""Pictures drawn for this project to show explanations on; their subjects are classes of CIFAR-10, or none of them."""

from PIL import Image, ImageDraw

from export.conversion.golden_images import shapes

SIDE_PIXELS = 128
SKY, SEA, ROAD = (150, 195, 235), (30, 80, 130), (110, 110, 112)


def demo_images() -> dict[str, Image.Image]:
    """Draw the pictures, by what they show: classes of CIFAR-10, and a house, which is not one of them."""
    return {"ship": ship(), "truck": truck(), "airplane": airplane(), "house": shapes(SIDE_PIXELS, SIDE_PIXELS)}


def ship() -> Image.Image:
    """Draw a freighter on the sea."""
    image, draw = _before(SKY, SEA, horizon=70)
    draw.polygon([(12, 72), (116, 72), (104, 98), (24, 98)], fill=(60, 50, 60))
    draw.rectangle((24, 90, 104, 98), fill=(150, 50, 45))
    draw.rectangle((78, 46, 104, 72), fill=(235, 235, 235))
    draw.rectangle((86, 32, 94, 46), fill=(200, 80, 50))
    for left, colour in ((26, (190, 120, 60)), (42, (70, 110, 160)), (58, (170, 60, 60))):
        draw.rectangle((left, 60, left + 14, 72), fill=colour)
    return image


def truck() -> Image.Image:
    """Draw a lorry from the side."""
    image, draw = _before(SKY, ROAD, horizon=88)
    draw.rectangle((10, 36, 82, 88), fill=(225, 225, 220))
    draw.polygon([(86, 52), (104, 52), (116, 72), (116, 88), (86, 88)], fill=(190, 40, 40))
    draw.polygon([(91, 56), (102, 56), (110, 71), (91, 71)], fill=(70, 90, 110))
    draw.rectangle((10, 88, 118, 94), fill=(50, 50, 52))
    for left in (20, 40, 92):
        draw.ellipse((left, 84, left + 20, 104), fill=(25, 25, 25))
        draw.ellipse((left + 6, 90, left + 14, 98), fill=(150, 150, 150))
    return image


def airplane() -> Image.Image:
    """Draw an airliner in the sky, from the side."""
    image, draw = _before(SKY, SKY, horizon=SIDE_PIXELS)
    draw.ellipse((10, 54, 118, 76), fill=(235, 238, 240))
    draw.polygon([(14, 62), (4, 32), (16, 32), (34, 58)], fill=(60, 80, 130))
    draw.polygon([(52, 66), (78, 66), (52, 104), (42, 104)], fill=(170, 175, 182))
    draw.polygon([(60, 56), (76, 56), (58, 34), (50, 34)], fill=(190, 195, 200))
    draw.line((30, 62, 104, 62), fill=(70, 80, 100), width=3)
    return image


def _before(
    upper: tuple[int, int, int], lower: tuple[int, int, int], horizon: int
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE_PIXELS, SIDE_PIXELS), upper)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, SIDE_PIXELS, SIDE_PIXELS), fill=lower)
    return image, draw
