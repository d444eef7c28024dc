#include <stdio.h>

int main(void)
{
    puts("penstock-broker " PENSTOCK_VERSION);
    return 0;
}
