#include <stdio.h>

int main(void)
{
    puts("penstock-worker " PENSTOCK_VERSION);
    return 0;
}
